"""Charts, as altair specifications or SVG."""
