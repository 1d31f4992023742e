// Texts to begin with: ten things people write about, five of each, so that the map has something to show.

export const SAMPLES = `Simmer the tomatoes slowly until the sauce thickens.
Fold the egg whites gently into the batter.
A pinch of salt brings out the taste of chocolate.
Let the bread dough rise for two hours in a warm place.
Roast the garlic before you stir it into the soup.
The rover found traces of ancient water on Mars.
Astronauts grow lettuce aboard the space station.
A comet's tail always points away from the Sun.
The telescope photographed a galaxy twelve billion light years away.
The rocket's first stage landed upright on a ship at sea.
The striker scored twice in the last five minutes.
She broke the marathon record by eleven seconds.
The goalkeeper saved the penalty with his left foot.
Rain stopped the tennis final in the second set.
The cyclists climbed the pass in thick fog.
The violin section came in half a beat too early.
He practises scales on the piano every morning.
The band recorded its new album in an old church.
A good drummer listens more than he plays.
The choir sang the last chorus without the orchestra.
Heavy snow is expected in the mountains tonight.
The storm left thousands of homes without power.
Fog will clear by noon, then it stays sunny.
The driest summer in forty years emptied the reservoirs.
A warm front brings drizzle to the coast tomorrow.
The function returns early when the list is empty.
The unit tests fail since the library was upgraded.
A race condition shows up only under heavy load.
Write the comment before you write the code.
The compiler warns about a variable that is never used.
The cat sleeps on the warm radiator all day.
A flock of starlings turned above the fields at dusk.
Our dog buries every toy in the garden.
Humpback whales sing for hours to find a mate.
The fox crossed the road with a cub in its mouth.
The night train to Lisbon leaves at half past nine.
We missed the ferry and slept at the harbour.
Her passport expired two days before the flight.
The hostel is ten minutes on foot from the station.
They hired bicycles and rode along the canal.
The central bank raised interest rates again.
He pays off his mortgage a little faster each year.
The company's shares fell after the quarterly report.
Put a tenth of your salary aside for emergencies.
Inflation eats up the savings of pensioners.
Drink plenty of water when you have a fever.
The doctor prescribed antibiotics for ten days.
Regular sleep lowers the risk of heart disease.
The vaccine protects children against measles.
Stretch your back often when you sit all day.`.split("\n");

export const QUESTIONS = ["cooking at home", "software bugs", "outer space"];
