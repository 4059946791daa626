"""Every table: its columns, its rules, its files."""
