"""The methods, server side; the client side of each has the same name in clients.methods."""
