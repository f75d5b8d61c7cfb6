"""The engine, the run folder and the metrics; imports none of the other packages."""
