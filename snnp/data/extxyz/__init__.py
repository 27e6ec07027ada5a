"""Extended XYZ: every frame of a file, or an error that names file, frame and line."""
