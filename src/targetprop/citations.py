"""The papers behind an algorithm, as BibTeX."""

from __future__ import annotations

from targetprop.algorithms import (
    DRL,
    DTP,
    LDRL,
    Algorithm,
    Attached,
    DDTPLinear,
    FixedWeightDTP,
    JacobianMatchingOracle,
    ParallelLDRL,
    TargetProp,
)

ENTRIES = {
    "rumelhart1986": """@article{rumelhart1986,
  title = {Learning representations by back-propagating errors},
  author = {Rumelhart, David E. and Hinton, Geoffrey E. and Williams, Ronald J.},
  journal = {Nature}, volume = {323}, pages = {533--536}, year = {1986}
}""",
    "bengio2014": """@article{bengio2014,
  title = {How auto-encoders could provide credit assignment in deep networks via target propagation},
  author = {Bengio, Yoshua},
  journal = {arXiv:1407.7906}, year = {2014}
}""",
    "lillicrap2016": """@article{lillicrap2016,
  title = {Random synaptic feedback weights support error backpropagation for deep learning},
  author = {Lillicrap, Timothy P. and Cownden, Daniel and Tweed, Douglas B. and Akerman, Colin J.},
  journal = {Nature Communications}, volume = {7}, pages = {13276}, year = {2016}
}""",
    "nokland2016": """@inproceedings{nokland2016,
  title = {Direct feedback alignment provides learning in deep neural networks},
  author = {N{\\o}kland, Arild},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2016}
}""",
    "lee2015": """@inproceedings{lee2015,
  title = {Difference target propagation},
  author = {Lee, Dong-Hyun and Zhang, Saizheng and Fischer, Asja and Bengio, Yoshua},
  booktitle = {ECML PKDD}, year = {2015}
}""",
    "akrout2019": """@inproceedings{akrout2019,
  title = {Deep learning without weight transport},
  author = {Akrout, Mohamed and Wilson, Collin and Humphreys, Peter and Lillicrap, Timothy and Tweed, Douglas B.},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2019}
}""",
    "meulemans2020": """@inproceedings{meulemans2020,
  title = {A Theoretical Framework for Target Propagation},
  author = {Meulemans, Alexander and Carzaniga, Francesco S. and Suykens, Johan A. K. and Sacramento, Jo{\\~a}o
            and Grewe, Benjamin F.},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2020}
}""",
    "ernoult2022": """@inproceedings{ernoult2022,
  title = {Towards Scaling Difference Target Propagation by Learning Backprop Targets},
  author = {Ernoult, Maxence and Normandin, Fabrice and Moudgil, Abhinav and Spinney, Sean and Belilovsky, Eugene
            and Rish, Irina and Richards, Blake and Bengio, Yoshua},
  booktitle = {International Conference on Machine Learning}, year = {2022}
}""",
    "liao2016": """@inproceedings{liao2016,
  title = {How Important Is Weight Symmetry in Backpropagation?},
  author = {Liao, Qianli and Leibo, Joel Z. and Poggio, Tomaso},
  booktitle = {AAAI Conference on Artificial Intelligence}, year = {2016}
}""",
    "xiao2018": """@inproceedings{xiao2018,
  title = {Biologically-Plausible Learning Algorithms Can Scale to Large Datasets},
  author = {Xiao, Will and Chen, Honglin and Liao, Qianli and Poggio, Tomaso},
  booktitle = {International Conference on Learning Representations}, year = {2019}
}""",
    "moskovitz2018": """@article{moskovitz2018,
  title = {Feedback alignment in deep convolutional networks},
  author = {Moskovitz, Theodore H. and Litwin-Kumar, Ashok and Abbott, L. F.},
  journal = {arXiv:1812.06488}, year = {2018}
}""",
    "bartunov2018": """@inproceedings{bartunov2018,
  title = {Assessing the Scalability of Biologically-Motivated Deep Learning Algorithms and Architectures},
  author = {Bartunov, Sergey and Santoro, Adam and Richards, Blake A. and Marris, Luke and Hinton, Geoffrey E.
            and Lillicrap, Timothy},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2018}
}""",
    "bao2024": """@inproceedings{bao2024,
  title = {Efficient Target Propagation by Deriving Analytical Solution},
  author = {Bao, Yanhao and Shibuya, Tatsukichi and Sato, Ikuro and Kawakami, Rei and Inoue, Nakamasa},
  booktitle = {AAAI Conference on Artificial Intelligence}, year = {2024}
}""",
    "shibuya2023": """@inproceedings{shibuya2023,
  title = {Fixed-Weight Difference Target Propagation},
  author = {Shibuya, Tatsukichi and Inoue, Nakamasa and Kawakami, Rei and Sato, Ikuro},
  booktitle = {AAAI Conference on Artificial Intelligence}, year = {2023}
}""",
}

PAPERS: dict[type[Algorithm], tuple[str, ...]] = {
    LDRL: ("ernoult2022",),
    DTP: ("lee2015",),
    TargetProp: ("bengio2014", "lee2015"),
    FixedWeightDTP: ("shibuya2023",),
    ParallelLDRL: ("ernoult2022",),
    JacobianMatchingOracle: ("ernoult2022", "bao2024"),
    DRL: ("meulemans2020",),
    DDTPLinear: ("meulemans2020",),
}


def cite(algo: Algorithm) -> str:
    """BibTeX of the papers that ``algo`` as configured comes from; tracking adds Kolen–Pollack's.

    Example:
        >>> print(tp.cite(algo))

    """
    if isinstance(algo, Attached):
        keys = ("rumelhart1986",) if algo.rule is None else algo.rule.papers
        if algo.feedback is not None and getattr(algo.feedback.solver, "tracking", False):
            keys += ("akrout2019",)
        return "\n\n".join(ENTRIES[key] for key in keys)
    keys = PAPERS[type(algo)]
    if isinstance(algo, LDRL) and algo.solver.tracking:
        keys += ("akrout2019",)
    return "\n\n".join(ENTRIES[key] for key in keys)
