"""What each family of models takes, how its models run and what is written of them."""
