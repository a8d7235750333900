"""Packages of others, as conceptkit meets them."""
