"""What tests share: references by definition, and programs that run inside ranks."""
