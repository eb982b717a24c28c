"""The Lightning plugin, in Lightning's own trainer on one process, and what an import says without Lightning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch

# Its trainer warns of few workers, of logging and of its own deprecated calls.
pytestmark = pytest.mark.filterwarnings("ignore")


def train(plugins: list[Any], **settings: Any) -> tuple[nn.Module, list[set[type]]]:
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))
            self.seen: list[set[type]] = []

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            self.seen.append({type(m) for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)})
            return self.layers(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), 6)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    model = Net()
    trainer.fit(model, loader)
    return model, model.seen


def test_layers_are_ours_while_it_trains_and_torchs_after(monkeypatch: pytest.MonkeyPatch) -> None:
    from wholebatch.lightning import WholeBatchSync

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    try:
        model, seen = train([WholeBatchSync(activation=True)], strategy="ddp", use_distributed_sampler=False)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert seen == [{wholebatch.BatchNorm1d}] * 4
    assert type(model.layers[1]) is nn.BatchNorm1d
    assert type(model.layers[2]) is nn.ReLU
    plain, plain_seen = train([])
    assert plain_seen == [{nn.BatchNorm1d}] * 4
    # Four steps in float32, in another order of operations: some units of 2^-24 of numbers of size one.
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=1e-5, atol=1e-6)


def test_the_plugin_is_of_the_lightning_that_the_program_imports(tmp_path: Path) -> None:
    """A stand-in for the older package: the real one takes seconds to import."""
    plugins = tmp_path / "pytorch_lightning" / "plugins"
    plugins.mkdir(parents=True)
    (plugins.parent / "__init__.py").touch()
    (plugins / "__init__.py").touch()
    (plugins / "layer_sync.py").write_text("class LayerSync: pass")
    code = (
        "import sys, pytorch_lightning.plugins.layer_sync as theirs; from wholebatch.lightning import WholeBatchSync\n"
        "assert issubclass(WholeBatchSync, theirs.LayerSync); assert 'lightning' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


def test_without_lightning_an_import_says_what_to_install() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if 'lightning' in name and '.' not in name else find(name, *a)\n"
        "try: import wholebatch.lightning\n"
        "except ImportError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "wholebatch.lightning needs Lightning: pip install 'wholebatch[lightning]'\n"
