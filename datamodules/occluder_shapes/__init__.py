"""Things to paste before faces: where a face is, how it is lit, and what is drawn there."""
