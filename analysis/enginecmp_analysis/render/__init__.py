"""What people and programs read: tables, Markdown, CSV, JSON, JUnit."""
