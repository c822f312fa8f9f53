"""The methods, client side; the server side of each has the same name in strategies.methods."""
