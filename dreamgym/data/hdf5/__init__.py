"""The native file format: schema, writer, reader, recovery, and the guard against damaged files."""
