// Answers one sentence about what it has computed, so that streams, formatting and the server's classes were loaded.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

public class Service {
    public static void main(String[] words) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 8081), 0);
        server.createContext("/", exchange -> {
            String squares = IntStream.range(1, 5).mapToObj(n -> String.format("%d", n * n)).collect(Collectors.joining(" "));
            byte[] answer = ("java is ready: " + squares + "\n").getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
