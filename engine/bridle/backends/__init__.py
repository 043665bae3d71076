"""Backends evaluate batches of rows. They see primitives, never controls."""
