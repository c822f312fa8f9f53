"""Ways to run many clients: through Flower's SuperLink and Ray, or in one process."""
