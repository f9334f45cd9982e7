"""Makers of the files that ship and are not written by hand: locales, pictures, tables."""
