"""Knowledge neurons: the few MLP neurons that carry a fact, found by integrated gradients (Dai et al. 2022).

:class:`Kn` is the method. :func:`attribute` gives every neuron's score, :func:`coarse` and :func:`refined` select, and
:func:`suppress` and :func:`enhance` tell what selected neurons do to an answer's probability. In an encoder-decoder all
of this is about the decoder's blocks, since only the decoder has a position that predicts the answer.
"""

from kedit_methods_locate.kn.attribution import Attribution, alphas, attribute
from kedit_methods_locate.kn.diagnosis import enhance, scaled, suppress
from kedit_methods_locate.kn.method import Kn
from kedit_methods_locate.kn.neurons import NeuronLayer, neuron_layers
from kedit_methods_locate.kn.selection import NeuronId, Neurons, coarse, refined

__all__ = [
    "Attribution",
    "Kn",
    "NeuronId",
    "NeuronLayer",
    "Neurons",
    "alphas",
    "attribute",
    "coarse",
    "enhance",
    "neuron_layers",
    "refined",
    "scaled",
    "suppress",
]
