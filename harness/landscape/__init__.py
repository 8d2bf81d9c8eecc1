"""How losses answer to a prediction that gets worse step by step, without any training: `bench landscape`.

After Figure 3 of Azad et al., 2023, in a form of our own: one label, two objects of the same shape in it, five ways in
which a prediction of them goes wrong, and the value and the gradient of every loss on each step of the way.
"""
