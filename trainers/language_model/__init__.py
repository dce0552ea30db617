"""Language models: a decoder that continues text, trained on files that are on the machine."""
