"use strict";
// Draws each figure with the template of the reader's colour scheme, and again where that changes.
const { figures, templates } = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displayModeBar: false, displaylogo: false };

function draw() {
  const template = templates[dark.matches ? "dark" : "light"];
  for (const [name, figure] of Object.entries(figures)) {
    const place = document.getElementById("figure-" + name);
    Plotly.react(place, figure.data, { ...figure.layout, template }, config);
  }
}

draw();
dark.addEventListener("change", draw);
