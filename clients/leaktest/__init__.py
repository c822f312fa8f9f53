"""Leak test: a method is rehearsed on made-up clients before it may run privately."""
