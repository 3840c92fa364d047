"""What single commands do, without the command line around them."""
