"""The pages of a station: for people with a browser. They call the same functions as the view for programs."""
