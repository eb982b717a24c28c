"""What self-contained HTML pages are made of: pictures, sections, and the page around them."""
