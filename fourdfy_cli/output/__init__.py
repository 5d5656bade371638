"""What leaves: pictures, videos, camera paths; and the files of other people that come back: films and text, within bounds."""
