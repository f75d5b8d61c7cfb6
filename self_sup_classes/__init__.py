"""Barlow Twins and its backbones."""
