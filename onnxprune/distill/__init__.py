"""What fine-tuning needs beside torch: options, training samples and their views, the teacher, the hand-off."""
