"""What runs an export on a server: its configuration and a client."""
