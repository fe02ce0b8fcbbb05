"""Tables, for the page and as CSV."""
