"""What happens to a series after it arrived."""
