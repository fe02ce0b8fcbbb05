"""The engine on a card: is it right, and how fast is it beside its peers? See docs/GPU.md."""
