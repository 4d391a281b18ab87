"""What happens to a network once it is trained: how fast it runs, and in which runtime."""
