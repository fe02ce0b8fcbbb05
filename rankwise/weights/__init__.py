"""What an update is as a matrix, and what it did to the base's."""
