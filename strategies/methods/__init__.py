"""Methods: one file each, of the same name as in clients.methods."""
