"""One rank of the distributed learner, without Ray: sharded networks, optimisers, and the objectives that train them.

The Ray actor around it is `rlhf_ray.actors.learner`; everything here also runs under plain torch.distributed.
"""
