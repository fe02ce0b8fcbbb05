"""What stages and repairs do with torch."""
