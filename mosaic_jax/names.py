"""Names of methods and networks, which settings choose among."""

# Methods that are federated rounds and nothing else: those in which every client has the whole network, and those that give a
# narrower client some channels of it.
WHOLE = ("fedavg", "fedprox", "fedbn", "fedrs")
WIDTHS = ("heterofl", "fedrolex", "federated_dropout")
FEDERATED = WHOLE + WIDTHS
NETWORKS = ("cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
