"""Foreign weight files to our parameter trees and back, strict both ways."""
