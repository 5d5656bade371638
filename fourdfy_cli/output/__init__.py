"""What leaves: pictures, videos, camera paths."""
