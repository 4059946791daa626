"""What a study's tables allow to be said, and how surely: intervals, tests, and the published held against them."""
