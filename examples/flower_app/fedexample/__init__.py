"""A Flower app whose server sums with veilsum."""
