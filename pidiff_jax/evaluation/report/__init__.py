"""What a run gave, for people: sample pictures, charts, and a report in one HTML file."""
