"""Data sets as they are downloaded or collected: tables and folders into columns, before any pixel is opened."""
