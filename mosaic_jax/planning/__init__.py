"""A dry run: what every stage of a run will hold, map, send and compile, found by tracing shapes; nothing is trained."""
