"""Photos, their captions and masks, and how they are cropped and augmented."""
