"""What speaks: the Docker plugin protocol over a Unix socket, and the ``trestle`` command."""
