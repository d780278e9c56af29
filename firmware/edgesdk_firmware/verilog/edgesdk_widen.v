// RATIO beats, the first least significant, become one.
module edgesdk_widen #(
    parameter integer WIDTH = 8,
    parameter integer RATIO = 2,
    parameter integer CBITS = 1
) (
    input  wire                   clk,
    input  wire                   rst,
    input  wire                   s_valid,
    output wire                   s_ready,
    input  wire [WIDTH-1:0]       s_data,
    output reg                    m_valid,
    input  wire                   m_ready,
    output wire [WIDTH*RATIO-1:0] m_data
);
    localparam integer LAST_COUNT = RATIO - 1;
    localparam [CBITS-1:0] LAST = LAST_COUNT[CBITS-1:0];

    reg [WIDTH*RATIO-1:0] beats;
    reg [CBITS-1:0]       count;

    assign s_ready = !m_valid || m_ready;
    assign m_data = beats;

    always @(posedge clk) begin
        if (s_ready) begin
            m_valid <= s_valid && count == LAST;
            if (s_valid) begin
                beats <= {s_data, beats[WIDTH*RATIO-1:WIDTH]};
                count <= count == LAST ? {CBITS{1'b0}} : count + 1'b1;
            end
        end
        if (rst) begin
            m_valid <= 1'b0;
            count <= {CBITS{1'b0}};
        end
    end
endmodule
