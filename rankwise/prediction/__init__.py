"""What can be known of the best rank before it is trained."""
