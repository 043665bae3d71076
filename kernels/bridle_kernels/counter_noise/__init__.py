"""Standard normal noise that is a function of numbers: no generator, no order of draws, the same on every device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the seed as its key and

    counter = (element, draw, step, 0)

gives four words, of which the first two make one number by Box and Muller's transform, with 24 bits of each:

    u = (word_0 // 2^8 + 1) / 2^24        v = (word_1 // 2^8) / 2^24
    n = sqrt(-2 log u) cos(2 pi v)

Of the first word alone come uniform numbers, word_0 // 2^8 / 2^24, and choices among m, word_0 m // 2^32.
"""

from bridle_kernels.counter_noise.reference import MAX_ELEMENTS, choices, philox4x32, standard_normal, uniform

__all__ = ["MAX_ELEMENTS", "choices", "philox4x32", "standard_normal", "uniform"]
