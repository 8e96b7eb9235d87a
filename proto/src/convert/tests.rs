// Round trips and refusals.
