"""Fine-tuning: distillation of the original into the pruned model, and the hand-off to other training code.

`tune` is the whole, `stages` cuts in several steps with training between them, `bundle` the hand-off and the way back.
What is made of torch, the network and its training, lies in `student`, which is imported inside functions.
"""
